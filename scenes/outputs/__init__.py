"""The files of a reconstructed scene."""
