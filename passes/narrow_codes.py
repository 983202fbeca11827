"""Store 2-bit codes in 2 bits."""

from __future__ import annotations

import onnx_ir as ir

from zq2onnx.passes.planned import EXACT_INT2_MULTIPLE, Form, Part, PlannedTensor

NARROW = {ir.DataType.UINT4: ir.DataType.UINT2, ir.DataType.INT4: ir.DataType.INT2}


def narrows(tensor: ir.TensorProtocol | None) -> bool:
    """Whether a planned tensor holds 2-bit codes in a 4-bit type without need."""
    return (
        isinstance(tensor, PlannedTensor)
        and tensor.form is Form.QDQ
        and tensor.weight.scheme.bits == 2
        and tensor.part in (Part.CODES, Part.ZERO_POINTS)
        and tensor.dtype in NARROW
        and tensor.weight.view.n % EXACT_INT2_MULTIPLE == 0
    )


class NarrowCodesPass(ir.passes.InPlacePass):
    """Replaces UINT4 and INT4 tensors of 2-bit codes with UINT2 and INT2.

    Where N is no multiple of 4 they stay as they are, for ONNX Runtime's fusion of the narrow
    types gives wrong numbers there. 3-bit codes have no narrower type. Needs opset 25.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for value in [value for graph in model.graphs() for value in graph.initializers.values()]:
            tensor = value.const_value
            if isinstance(tensor, PlannedTensor) and narrows(tensor):
                shape = tuple(int(dim) for dim in tensor.shape.numpy())
                narrow = NARROW[tensor.dtype]
                value.const_value = PlannedTensor(tensor.weight, tensor.part, tensor.form, narrow, shape)
                value.type = ir.TensorType(narrow)
                modified = True
        return ir.passes.PassResult(model, modified)
