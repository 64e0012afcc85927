"""Photos made ready for training: found, judged, cropped, masked and captioned; and how the engine gets them."""
