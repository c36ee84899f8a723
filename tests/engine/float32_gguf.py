"""A GGUF file's model without its rounding: every weight unpacked to float32."""

from __future__ import annotations

from pathlib import Path

import gguf

_WRITTEN_ANYWAY = ("GGUF.", "general.architecture", "general.file_type")


def write_float32_gguf(source: Path, target: Path) -> Path:
    """Copy the GGUF file `source` to `target` with its weights as float32; returns `target`.

    llama.cpp multiplies float32 weights with float32 activations, where it rounds the activations
    of block formats to 8 bits: on this copy it computes what the numbers in `source` say.
    """
    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(target, architecture)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for name, field in reader.fields.items():
        if not name.startswith(_WRITTEN_ANYWAY):
            kind = field.types[0]
            item_kind = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), kind, item_kind)
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        writer.add_tensor(tensor.name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target
