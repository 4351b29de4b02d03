# Which architectures the CUDA kernels are built for: sets `result` to a list for CMAKE_CUDA_ARCHITECTURES.
#   wanted    QCSE_CUDA_ARCHITECTURES: a list, "native", "release" or nothing
#   standing  CMAKE_CUDA_ARCHITECTURES as somebody may have set it, for where nothing is wanted
function(qcse_cuda_architectures result wanted standing)
  if(wanted STREQUAL "release")
    set(found 80-real 86-real 89-real 90-real 100-real 120)
  elseif(wanted AND NOT wanted STREQUAL "native")
    set(found ${wanted})
  elseif(standing AND NOT wanted)
    set(found ${standing})
  else()
    # The GPUs that are here, or 8.0, whose PTX newer ones can run. CMake's own "native" is not used: it leaves out PTX,
    # and fails where there is no GPU.
    execute_process(COMMAND nvidia-smi --query-gpu=compute_cap --format=csv,noheader RESULT_VARIABLE failed
                    OUTPUT_VARIABLE told ERROR_QUIET)
    string(REGEX MATCHALL "[0-9]+\\.[0-9]+" found "${told}")
    string(REPLACE "." "" found "${found}")
    list(REMOVE_DUPLICATES found)
    if(failed OR NOT found)
      set(found 80)
    endif()
  endif()
  # Machine code runs on its own generation alone. Some PTX is always embedded, so that a newer GPU finds a kernel.
  if(NOT found MATCHES "(^|;)([0-9]+(-virtual)?|all|all-major)(;|$)")
    string(REGEX MATCHALL "[0-9]+" numbers "${found}")
    list(SORT numbers COMPARE NATURAL)
    list(POP_BACK numbers newest)
    list(APPEND found ${newest}-virtual)
  endif()
  set(${result} "${found}" PARENT_SCOPE)
endfunction()
