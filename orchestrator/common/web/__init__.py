"""Pages of HTML in one file: the frame, the style, and the scripts that all pages share."""
