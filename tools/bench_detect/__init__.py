"""Detection: YOLO and SSD on the same parts."""
