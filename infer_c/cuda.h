// Owners of CUDA's handles, and its errors as exceptions.

#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <memory>
#include <string>
#include <type_traits>

#include "bert_infer.h"

namespace demobert::cuda {

// Throws Error unless `status` is success. `what` was to be done.
inline void check(cudaError_t status, const char* what) {
    if (status != cudaSuccess) {
        throw Error(std::string("the GPU failed to ") + what + ": " + cudaGetErrorString(status));
    }
}

// Frees a handle with one of CUDA's functions. An error there has no remedy, and a destructor may not throw: it is kept
// by CUDA and shows at the next call.
template <auto function>
struct Free {
    template <typename T>
    void operator()(T* handle) const noexcept {
        static_cast<void>(function(handle));
    }
};

template <typename Handle, auto function>
using Owner = std::unique_ptr<std::remove_pointer_t<Handle>, Free<function>>;

using Stream = Owner<cudaStream_t, cudaStreamDestroy>;
using Event = Owner<cudaEvent_t, cudaEventDestroy>;
using Graph = Owner<cudaGraph_t, cudaGraphDestroy>;
using GraphExec = Owner<cudaGraphExec_t, cudaGraphExecDestroy>;
using DeviceMemory = std::unique_ptr<void, Free<static_cast<cudaError_t (*)(void*)>(cudaFree)>>;
using PinnedMemory = std::unique_ptr<void, Free<static_cast<cudaError_t (*)(void*)>(cudaFreeHost)>>;

inline Stream make_stream() {
    cudaStream_t stream = nullptr;
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "create a stream");
    return Stream(stream);
}

inline Event make_event() {
    cudaEvent_t event = nullptr;
    check(cudaEventCreate(&event), "create an event");
    return Event(event);
}

inline DeviceMemory device_memory(std::size_t bytes) {
    void* memory = nullptr;
    check(cudaMalloc(&memory, bytes), "allocate memory");
    return DeviceMemory(memory);
}

inline PinnedMemory pinned_memory(std::size_t bytes) {
    void* memory = nullptr;
    check(cudaMallocHost(&memory, bytes), "allocate pinned memory");
    return PinnedMemory(memory);
}

// GPU 0: its name as the driver spells it, and its compute capability.
struct Gpu {
    std::string name;
    int major = 0;
    int minor = 0;

    std::string capability() const { return std::to_string(major) + "." + std::to_string(minor); }
    std::string describe() const { return name + " (compute capability " + capability() + ")"; }
};

// Throws Error where no GPU or driver answers.
inline Gpu first_gpu() {
    int count = 0;
    cudaError_t status = cudaGetDeviceCount(&count);
    if (status == cudaSuccess && count == 0) {
        status = cudaErrorNoDevice;
    }
    if (status != cudaSuccess) {
        throw Error(std::string("no NVIDIA GPU answers (") + cudaGetErrorString(status) +
                    "); an engine built with --backend openvino runs on the CPU");
    }
    cudaDeviceProp properties{};
    check(cudaGetDeviceProperties(&properties, 0), "describe itself");
    return {properties.name, properties.major, properties.minor};
}

}  // namespace demobert::cuda
