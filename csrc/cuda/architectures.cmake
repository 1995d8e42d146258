# What this nvcc can compile for: A100 (8.0), H100 (9.0, CUDA 11.8), B200 (10.0, CUDA 12.8), RTX 50 (12.0, CUDA 12.8), and
# PTX of the newest for what follows.  An architecture that nvcc does not know would end the build.

# Sets `result` to a list for CMAKE_CUDA_ARCHITECTURES; empty if `compiler` tells no version, or one before 11.1.
function(fastfid_cuda_architectures compiler result)
  if(NOT compiler)
    find_program(fastfid_nvcc nvcc)
    set(compiler "${fastfid_nvcc}")
  endif()
  set(said "")
  execute_process(COMMAND "${compiler}" --version OUTPUT_VARIABLE said ERROR_QUIET RESULT_VARIABLE failed)
  set(list "")
  if(NOT failed AND said MATCHES "release ([0-9]+\\.[0-9]+)")
    set(version "${CMAKE_MATCH_1}")
    if(version VERSION_GREATER_EQUAL 12.8)
      set(list 80-real 90-real 100-real 120-real 120-virtual)
    elseif(version VERSION_GREATER_EQUAL 11.8)
      set(list 80-real 90-real 90-virtual)
    elseif(version VERSION_GREATER_EQUAL 11.1)
      set(list 80-real 80-virtual)
    endif()
  endif()
  set(${result} "${list}" PARENT_SCOPE)
endfunction()
