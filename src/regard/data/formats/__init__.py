"""Detection data in other formats than COCO, read into COCO's tables: YOLO, Pascal VOC, CSV."""
