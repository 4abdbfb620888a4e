"""The images of a scene, read window by window."""
