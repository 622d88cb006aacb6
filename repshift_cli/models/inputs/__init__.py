"""What is fed to a model: images, clips, sentences."""
