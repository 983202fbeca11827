// A host of the operator library that is not ONNX Runtime, with a GPU that is not there: creates nodes as on the CUDA
// provider, runs each twice, and tells of all that happens on standard output, as the stand-in for libcuda does.
//
//   cuda_host CASES ALIGNMENT [DEVICE [HOW]]    arrays begin at multiples of ALIGNMENT; of the DEVICE that ONNX Runtime
//                                               names. HOW `ask`: nothing is asked for, the library chooses; `threads`:
//                                               four of them have a session each; `full`: the GPU has 1000 bytes left
//
// Nodes are all created before the first one runs, as in a session. An error of a node's is told, and the next one tried.

#include <thread>

#include "cases.h"

using namespace zq2onnx::ort;

extern "C" Status* RegisterCustomOps(SessionOptions*, const ApiBase*);

namespace {

struct Created {
  KernelInfo node;
  const CustomOp* op = nullptr;
  void* kernel = nullptr;
};

bool told(Status* status) {
  if (!status) return false;
  std::printf("failed\t%s\n", status->message.c_str());
  delete status;
  return true;
}

void tell_arrays(const KernelInfo& node) {
  for (const auto& value : node.inputs) {
    std::printf("array\t%p\t%zu\n", value ? static_cast<void*>(value->memory->data()) : nullptr,
                value ? value->count() * size_of(value->info.type) : 0);
  }
}

Created create(const SessionOptions& options, KernelInfo node) {
  Created made{std::move(node)};
  for (const CustomOp* op : options.domain ? options.domain->ops : std::vector<const CustomOp*>{}) {
    if (fits(op, made.node) && std::string(op->GetExecutionProviderType(op)) == "CUDAExecutionProvider") made.op = op;
  }
  std::printf("create\t%s\n", made.node.op.c_str());
  if (!made.op) std::printf("absent\n");
  if (made.op && told(made.op->CreateKernelV2(made.op, api(), &made.node, &made.kernel))) made.kernel = nullptr;
  return made;
}

void run(const Created& made) {
  std::printf("run\n");
  tell_arrays(made.node);
  KernelContext context{&made.node, {}};
  if (told(made.op->KernelComputeV2(made.kernel, &context)) || !context.output.memory) return;
  std::printf("output\t%p\t%zu\n", static_cast<void*>(context.output.memory->data()),
              context.output.count() * size_of(context.output.info.type));
}

void session(const SessionOptions& options, const char* cases) {
  std::vector<Created> nodes;
  for (Reader reader(cases); !reader.done();) nodes.push_back(create(options, reader.node()));
  for (int turn = 0; turn < 2; ++turn) {
    for (const Created& made : nodes) {
      if (made.kernel) run(made);
    }
  }
  for (const Created& made : nodes) {
    if (made.kernel) made.op->KernelDestroy(made.kernel);
  }
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 3) fail("usage: cuda_host CASES ALIGNMENT [DEVICE [HOW]]");
  const std::string how = count > 4 ? arguments[4] : "";
  Memory::alignment = static_cast<size_t>(std::atoi(arguments[2]));
  arena().memory.device = count > 3 ? std::atoi(arguments[3]) : 0;
  if (how == "full") arena().most = 1000;
  has_cuda = true;
  const ApiBase base{[](uint32_t) noexcept { return api(); }, []() noexcept { return "none"; }};
  SessionOptions options;
  if (how != "ask") options.entries = {{"ai.zq2onnx.ops", "all"}, {"ai.zq2onnx.provider", "cuda"}};
  check(RegisterCustomOps(&options, &base));
  std::printf("registered\t%s\n", options.entries["ai.zq2onnx.registered"].c_str());
  std::vector<std::thread> others;
  for (int each = 1; each < (how == "threads" ? 4 : 1); ++each) {
    others.emplace_back([&] { session(options, arguments[1]); });
  }
  session(options, arguments[1]);
  for (std::thread& each : others) each.join();
  std::printf("end\t%zu\n", arena().taken.size());
}
