// Runs a CUDA kernel of one-dimensional blocks on the CPU, one block after the other, every thread a fiber.
//
// Between two barriers the threads of a block run one after the other, to the end of the phase each: forwards, backwards, or
// alternating (`Order`).  A missing barrier makes the result depend on the order.  Shared memory starts as NaN.  A barrier
// that some threads never reach is reported.
#pragma once

#include <math.h>
#include <stdint.h>
#include <ucontext.h>

#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define FASTFID_SHARED_MEMORY(name) double* name = cuda_block::shared.data()

struct Index {
    unsigned x;
};
inline thread_local Index threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_block {

enum Order { FORWARDS, BACKWARDS, ALTERNATING };
constexpr size_t STACK = 64 << 10;  // bytes a thread

struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack{new char[STACK]};
    bool finished = false;
};

inline std::vector<double> shared;
inline std::function<void()> body;
inline ucontext_t scheduler;
inline Fiber* current;

inline void enter() {
    body();
    current->finished = true;
    swapcontext(&current->context, &scheduler);
}

inline void resume(Fiber& fiber, unsigned index) {
    current = &fiber;
    threadIdx.x = index;
    swapcontext(&scheduler, &fiber.context);
}

// Returns false when some threads finished while others waited at a barrier.
inline bool run_block(unsigned threads, Order order) {
    std::vector<Fiber> fibers(threads);
    for (auto& fiber : fibers) {
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.get();
        fiber.context.uc_stack.ss_size = STACK;
        fiber.context.uc_link = &scheduler;
        makecontext(&fiber.context, enter, 0);
    }
    for (int phase = 0;; phase++) {
        const bool backwards = order == BACKWARDS || (order == ALTERNATING && phase % 2);
        unsigned finished = 0;
        for (unsigned i = 0; i < threads; i++) {
            const unsigned thread = backwards ? threads - 1 - i : i;
            resume(fibers[thread], thread);
            finished += fibers[thread].finished;
        }
        if (finished == threads) return true;
        if (finished) return false;
    }
}

// Runs blocks first … blocks − 1 of a grid of `blocks`; the others' results are not asked for.
template <class Kernel, class... Arguments>
bool launch(Kernel kernel, unsigned first, unsigned blocks, unsigned threads, size_t shared_bytes, Order order, Arguments... arguments) {
    gridDim.x = blocks;
    blockDim.x = threads;
    body = [=] { kernel(arguments...); };
    for (unsigned block = first; block < blocks; block++) {
        blockIdx.x = block;
        shared.assign((shared_bytes + sizeof(double) - 1) / sizeof(double), NAN);
        if (!run_block(threads, order)) return false;
    }
    return true;
}

}  // namespace cuda_block

inline void __syncthreads() { swapcontext(&cuda_block::current->context, &cuda_block::scheduler); }
