from tests.runtime.builders import folders

__all__ = ["folders"]
