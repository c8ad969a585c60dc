"""The version, alone in a module so that the build and the kernel cache can read it without importing the package."""

__version__ = "0.1.0"
