"""Arrays that are stored smaller than they are, exact to the last bit.

An array's bits go through `steps`, which divide them into streams of bytes; each stream is stored as it is or packed by
a coder, in pieces that threads unpack at once. Its row in the manifest says how:

    {"steps": ["mask", "shuffle"], "parts": [{"coder": "xz", "size": 4096, "pieces": [1212]}, …]}

a part for each stream, in order: its coder, its bytes when unpacked, and the bytes of each piece as it is stored. All
pieces lie one behind the other. `choice` finds what suits an array; where it does not pay nothing is coded.
"""
