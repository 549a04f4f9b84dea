"""A small real vision-language app on drawn scenes, and the demo checker trained on the same world."""
