# The native core: hashing. Its callers are core.hashing and core.index; results are those of the Python references.

from warmroute.types import PrefixHash, TokenIds

__version__: str

# The PrefixHash of each full block; first_extra is the first block's extra digest, extra that of all others.
def prefix_hashes(tokens: TokenIds, block_size: int, first_extra: int, extra: int) -> list[PrefixHash]: ...

# The content digest of each full block.
def block_digests(tokens: TokenIds, block_size: int) -> list[int]: ...
