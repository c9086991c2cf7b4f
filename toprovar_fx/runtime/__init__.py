"""What runs while an image is drawn: generation, controller that decides, gates that obey, report."""
