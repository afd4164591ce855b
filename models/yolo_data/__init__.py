"""Data sets in YOLO layout: labels, images, augmentation and batches, for any detector."""
