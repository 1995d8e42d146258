// Chooses the instruction set at run time.
#include "dispatch.h"

#include <stdexcept>

namespace fastfid {

FASTFID_DECLARE(baseline)
FASTFID_DECLARE(wide)
#ifdef FASTFID_HAVE_X86_VARIANTS
FASTFID_DECLARE(avx2)
FASTFID_DECLARE(avx512)
#endif

namespace {

bool offers(const std::string& isa) {
    if (isa == "baseline" || isa == "wide") return true;
#ifdef FASTFID_HAVE_X86_VARIANTS
    if (isa == "avx2") return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (isa == "avx512")  // what x86-64-v4 lets the compiler use
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma");
#endif
    return false;
}

std::string choose(const std::string& isa) {
    static const std::string best = offers("avx512") ? "avx512" : offers("avx2") ? "avx2" : "baseline";
    if (isa.empty()) return best;
    if (!offers(isa)) throw std::invalid_argument("the instruction set " + isa + " is not available on this machine");
    return isa;
}

}  // namespace

template <class T>
Kernels<T> kernels_of(const std::string& isa) {
    const std::string chosen = choose(isa);
#ifdef FASTFID_HAVE_X86_VARIANTS
    if (chosen == "avx512") return avx512::kernels<T>();
    if (chosen == "avx2") return avx2::kernels<T>();
#endif
    return chosen == "wide" ? wide::kernels<T>() : baseline::kernels<T>();
}
template Kernels<float> kernels_of<float>(const std::string&);
template Kernels<double> kernels_of<double>(const std::string&);

std::vector<std::string> instruction_sets() {
    std::vector<std::string> found;
    for (const char* isa : {"avx512", "avx2", "baseline", "wide"})
        if (offers(isa)) found.push_back(isa);
    return found;
}

}  // namespace fastfid
