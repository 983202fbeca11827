// Errors: thrown inside the library, turned into an ONNX Runtime status at every function that it may call.
#pragma once

#include <exception>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>

#include "ort_abi.h"

namespace zq2onnx {

// Reads `found; required: ..`, as all of zq2onnx's errors do.
class Error : public std::runtime_error {
 public:
  Error(const std::string& found, const std::string& required)
      : std::runtime_error(required.empty() ? found : found + "; required: " + required) {}
};

// A status of ONNX Runtime's own, on its way back through our code.
struct StatusError {
  ort::Status* status;
};

inline void check(ort::Status* status) {
  if (status) throw StatusError{status};
}

// Runs `body`; what it throws becomes a status, for no exception may cross into ONNX Runtime.
template <typename Body>
ort::Status* guard(const ort::Api* api, Body&& body) noexcept {
  try {
    std::forward<Body>(body)();
    return nullptr;
  } catch (const Error& error) {
    return api->call<ort::CreateStatus>(ort::ErrorCode::kInvalidArgument, error.what());
  } catch (const StatusError& error) {
    return error.status;
  } catch (const std::bad_alloc&) {
    return api->call<ort::CreateStatus>(ort::ErrorCode::kFail, "zq2onnx: out of memory");
  } catch (const std::exception& error) {
    return api->call<ort::CreateStatus>(ort::ErrorCode::kFail, error.what());
  } catch (...) {
    return api->call<ort::CreateStatus>(ort::ErrorCode::kFail, "zq2onnx: unknown exception");
  }
}

}  // namespace zq2onnx
