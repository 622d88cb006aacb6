"""repshift: does dropping tokens by representation shift make this model faster on this device, and at what loss?"""

__version__ = "0.1.0"
