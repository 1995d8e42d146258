// Shared by the functions that bindings.cpp calls: choosing the kernels of an instruction set, and dividing tasks among threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "kernels.h"
#include "threads.h"

namespace fastfid {

// The kernels of `isa`; an empty string means the best instruction set of this machine.  std::invalid_argument for a name that
// this build or machine lacks.
template <class T>
Kernels<T> kernels_of(const std::string& isa);

// Instruction sets usable here, best first.
std::vector<std::string> instruction_sets();

struct Free {
    void operator()(void* memory) const { std::free(memory); }
};
template <class T>
using Buffer = std::unique_ptr<T[], Free>;

// 64-byte aligned; std::bad_alloc when memory runs out.
template <class T>
Buffer<T> zeroed(int64_t elements) {
    const size_t bytes = (elements * sizeof(T) + 63) / 64 * 64;
    void* memory = std::aligned_alloc(64, std::max<size_t>(bytes, 64));
    if (!memory) throw std::bad_alloc();
    std::memset(memory, 0, bytes);
    return Buffer<T>(static_cast<T*>(memory));
}

// Calls work(task, memory) for every task, in any order, on at most `threads` threads, each with `elements` zeroed elements of
// its own.
template <class T, class Work>
void share(int64_t tasks, int threads, int64_t elements, const Work& work) {
    threads = int(std::max<int64_t>(1, std::min<int64_t>(threads, tasks)));
    struct Team {
        int64_t tasks;
        const Work& work;
        std::vector<Buffer<T>> memory;
        std::atomic<int64_t> next_task{0};
        std::atomic<int> next_thread{0};
    } team{tasks, work, {}};
    for (int thread = 0; thread < threads; thread++) team.memory.push_back(zeroed<T>(elements));
    on_threads(
        threads,
        [](void* data) {
            Team& of = *static_cast<Team*>(data);
            T* memory = of.memory[of.next_thread.fetch_add(1)].get();
            for (int64_t task; (task = of.next_task.fetch_add(1)) < of.tasks;) of.work(task, memory);
        },
        &team);
}

}  // namespace fastfid
