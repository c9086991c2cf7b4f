"""What runs while an image is drawn: the generation, the controller that decides, the gates that obey, the report."""
