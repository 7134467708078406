"""From bytes and folders to RGB arrays and labelled items. No torch."""
