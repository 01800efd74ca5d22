"""Sources of examples, one module for each kind. `open_split` finds the kind by the name of the data.

Images are returned as the bytes of their files. TensorFlow is never imported, and nothing is downloaded.
"""

from vit_train.data.sources.groups import Groups, NoGroupsError
from vit_train.data.sources.opening import open_split
from vit_train.data.sources.split import Example, Split, Which

__all__ = ["Example", "Groups", "NoGroupsError", "Split", "Which", "open_split"]
