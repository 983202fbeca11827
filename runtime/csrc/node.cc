#include "node.h"

namespace zq2onnx {

Node::Node(const Operator& op, ort::ElementType type, const ort::Api* api, const ort::KernelInfo* info)
    : inputs_(op, type, api, info),
      functions_{find_widen(type), find_narrow(type),
                 find_kernel(op.storage(), op.activation, inputs_.requirements().geometry.block)} {}

void Node::compute(ort::KernelContext* context) const {
  inputs_.naming([&] {
    const RunInputs inputs(inputs_, context);
    void* y = inputs.make_output(context);
    if (inputs.tokens() == 0) return;
    Run run(inputs_.requirements(), inputs.tensors(), inputs.tokens(), y, functions_);
    run.start(api(), context);
  });
}

}  // namespace zq2onnx
