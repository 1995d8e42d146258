// A second pool of threads would fight the first: after a matrix product torch's OpenMP workers spin for milliseconds in case
// more work comes, each on a core that a thread of ours would want.  So the work is handed to that very team.  torch brings its
// OpenMP library along under a name of its own, so it is looked for among the libraries the process has loaded; every one of
// them, GNU's and LLVM's, offers GOMP_parallel, the entry point that GNU's compiler calls at a `#pragma omp parallel`
// (libgomp.h of GCC; stable since version 4.0).  Without such a library there is nobody to fight, and threads are started.
#include "threads.h"

#include <cstring>
#include <system_error>
#include <thread>
#include <vector>

#ifdef __linux__
#include <dlfcn.h>
#include <link.h>
#endif

namespace fastfid {
namespace {

typedef void (*Parallel)(void (*work)(void*), void* data, unsigned threads, unsigned flags);

#ifdef __linux__
int find_parallel(dl_phdr_info* library, size_t, void* found) {
    const char* slash = std::strrchr(library->dlpi_name, '/');
    const char* name = slash ? slash + 1 : library->dlpi_name;
    if (std::strncmp(name, "libgomp", 7) && std::strncmp(name, "libiomp", 7) && std::strncmp(name, "libomp", 6)) return 0;
    void* handle = dlopen(library->dlpi_name, RTLD_LAZY | RTLD_NOLOAD);
    void* symbol = handle ? dlsym(handle, "GOMP_parallel") : nullptr;
    std::memcpy(found, &symbol, sizeof symbol);
    return symbol != nullptr;  // anything but 0 ends the search
}

Parallel loaded_team() {
    static const Parallel team = [] {
        Parallel found = nullptr;
        dl_iterate_phdr(find_parallel, &found);
        return found;
    }();
    return team;
}
#else
Parallel loaded_team() { return nullptr; }
#endif

void on_own_threads(int threads, void (*work)(void*), void* data) {
    std::vector<std::thread> helpers;
    for (int thread = 1; thread < threads; thread++) {
        try {
            helpers.emplace_back(work, data);
        } catch (const std::system_error&) {  // the system grants no more threads: the others do the work
            break;
        }
    }
    work(data);
    for (auto& helper : helpers) helper.join();
}

}  // namespace

void on_threads(int threads, void (*work)(void*), void* data) {
    if (threads <= 1) return work(data);
    if (const Parallel team = loaded_team()) return team(work, data, unsigned(threads), 0);
    on_own_threads(threads, work, data);
}

}  // namespace fastfid
