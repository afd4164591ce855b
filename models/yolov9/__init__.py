"""YOLOv9: network, heads, loss, data and evaluation, in memplan's own words."""
