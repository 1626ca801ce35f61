"""Fills llama.cpp's cache to a depth without computing it, so that decode can be measured there in minutes.

What decode takes depends on how much is cached, not on what. The state that llama.cpp saves of a short prompt is taken
apart, its rows are repeated until there are as many as wanted, with ascending positions, and it is loaded again. Local
layers get their window.
"""

import ctypes
import struct

SHORT = 64


class Reader:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, n):
        self.at += n
        return self.data[self.at - n:self.at]

    def number(self, form):
        return struct.unpack("<" + form, self.take(struct.calcsize(form)))[0]


def repeat(out, rows, n_bytes):
    for _ in range(n_bytes // len(rows)):
        out += rows
    out += rows[:n_bytes % len(rows)]


def deepen(out, reader, depth, window):
    """Adds one of the caches in the state, with `depth` rows instead of its own, or the last `window` of them."""
    n_streams, n_rows = reader.number("I"), reader.number("I")
    if n_streams != 1 or n_rows != SHORT:
        raise ValueError(f"{n_streams} streams with {n_rows} rows, not one with {SHORT}")
    for _ in range(n_rows):
        if reader.number("i") < 0 or reader.number("I") != 1 or reader.number("i") != 0:
            raise ValueError("rows of a form that this script does not know")
    n = min(depth, window) if window else depth
    out += struct.pack("<II", 1, n)
    for position in range(depth - n, depth):
        out += struct.pack("<iIi", position, 1, 0)
    transposed, n_layers = reader.number("I"), reader.number("I")
    out += struct.pack("<II", transposed, n_layers)
    for _ in range(n_layers):
        kind, width = reader.number("i"), reader.number("Q")
        out += struct.pack("<iQ", kind, width)
        repeat(out, reader.take(SHORT * width), n * width)
    for _ in range(n_layers):
        kind = reader.number("i")
        if transposed:
            size, n_values = reader.number("I"), reader.number("I")
            out += struct.pack("<iII", kind, size, n_values)
            for _ in range(n_values):
                repeat(out, reader.take(SHORT * size), n * size)
        else:
            width = reader.number("Q")
            out += struct.pack("<iQ", kind, width)
            repeat(out, reader.take(SHORT * width), n * width)


def fill(llama_cpp, context, depth, window):
    """Puts `depth` rows into the empty cache of `context`, whose first sequence has just read `SHORT` tokens.

    `window` is what local layers keep. Raises ValueError where llama.cpp saves its state in another form.
    """
    size = llama_cpp.llama_state_seq_get_size(context, 0)
    buffer = (ctypes.c_uint8 * size)()
    llama_cpp.llama_state_seq_get_data(context, buffer, size, 0)
    reader = Reader(bytes(buffer))
    state = bytearray(reader.take(8))
    deepen(state, reader, depth, None)
    deepen(state, reader, depth, window)
    if reader.at != size:
        raise ValueError(f"{size - reader.at} bytes of the state are left over")
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
    filled = (ctypes.c_uint8 * len(state)).from_buffer(state)
    if llama_cpp.llama_state_seq_set_data(context, filled, len(state), 0) != len(state):
        raise ValueError("llama.cpp does not take the deeper state")
