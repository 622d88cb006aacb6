"""What instruments of HBM traffic share: their choice, calibration, child process and permission."""
