"""The tensor programs that `lower` emits, one family a file: the computation beside its schedule.

Every computation is written in channels-last layout. A family's anchor block carries the annotation FAMILY, so that
its schedule is found again after TVM has fused an epilogue behind it. That of a layer also carries MACS, its
multiply-accumulates as every published figure counts them: without what is padding for the kernel's sake.
"""

FAMILY = "tvmcompress.family"
CODE = "code"  # LLVM's text of the functions that a block calls
MACS = "tvmcompress.macs"
