// Threads for the CPU kernels: the OpenMP team this process already has, else some of our own.
#pragma once

namespace fastfid {

// Calls work(data) on the calling thread and, at the same time, on up to threads − 1 others; returns when all have returned.
void on_threads(int threads, void (*work)(void*), void* data);

}  // namespace fastfid
