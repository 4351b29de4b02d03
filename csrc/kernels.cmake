# The kernels as object libraries, qcse_cpu and, where it is wanted and nvcc is found, qcse_cuda. Nothing of torch and
# nothing of Python is needed: the extension module and the laboratory (benchmarks/gpu) both include this file. Options:
#   QCSE_CUDA=AUTO|ON|OFF        AUTO builds the CUDA kernels where nvcc is found
#   QCSE_CUDA_ARCHITECTURES=...  a CMake list ("80;90"), "native", or "release" (everything that is supported)
#   QCSE_TUNING=ON|OFF           also the tile variants that the laboratory measures
#   QCSE_WERROR=ON|OFF           warnings are errors
#   QCSE_SANITIZE=address,undefined   instrument the CPU code
set(QCSE_CUDA AUTO CACHE STRING "Build the CUDA kernels: AUTO, ON or OFF")
set_property(CACHE QCSE_CUDA PROPERTY STRINGS AUTO ON OFF)
set(QCSE_CUDA_ARCHITECTURES "" CACHE STRING "CUDA architectures; empty: this machine's GPUs, or 80 where there is none")
option(QCSE_TUNING "Build every tile variant of the CUDA kernels" OFF)
option(QCSE_WERROR "Treat warnings as errors" OFF)
set(QCSE_SANITIZE "" CACHE STRING "Sanitizers for the CPU code, for example address,undefined")
set(qcse_csrc "${CMAKE_CURRENT_LIST_DIR}")

# --- Compiler ---------------------------------------------------------------------------------------------------
include(CheckLanguage)
check_language(CXX)
if(NOT CMAKE_CXX_COMPILER)
  message(FATAL_ERROR
    "qcse needs a C++ compiler and found none.\n"
    "  Debian, Ubuntu: apt-get install g++      Fedora: dnf install gcc-c++      macOS: xcode-select --install\n"
    "  A compiler in an unusual place: CXX=/path/to/g++ pip install --no-build-isolation .")
endif()
enable_language(CXX)
set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_CXX_VISIBILITY_PRESET hidden)
set(CMAKE_VISIBILITY_INLINES_HIDDEN ON)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
# torch is imported before the module, so its libraries are there already: no search path is left in the module.
set(CMAKE_SKIP_RPATH ON)

# --- Warnings and floating point --------------------------------------------------------------------------------
set(qcse_warnings -Wall -Wextra -Wpedantic -Wshadow)
if(QCSE_WERROR)
  list(APPEND qcse_warnings -Werror)
endif()
# Same bits everywhere: a fused multiply-add happens where the source says so and nowhere else.
set(qcse_float -ffp-contract=off -fno-math-errno -fno-trapping-math)

# --- CPU kernels --------------------------------------------------------------------------------------------------
# What every machine runs is in */cpu, isa and isa/portable. Another folder of isa/ is an instruction set: it is built,
# with the flags that its file PROCESSOR.flags holds in one line, where that is the processor that is built for, and
# chosen at run time (isa/isa.cpp).
set(processor "${CMAKE_SYSTEM_PROCESSOR}")
if(processor MATCHES "^(x86_64|amd64|AMD64)$")
  set(processor x86_64)
endif()
file(GLOB qcse_cpu_sources CONFIGURE_DEPENDS "${qcse_csrc}/*/cpu/*.cpp" "${qcse_csrc}/isa/*.cpp"
                                             "${qcse_csrc}/isa/portable/*.cpp")
add_library(qcse_cpu OBJECT ${qcse_cpu_sources})
file(GLOB flag_files CONFIGURE_DEPENDS "${qcse_csrc}/isa/*/${processor}.flags")
foreach(flag_file IN LISTS flag_files)
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${flag_file}")
  file(STRINGS "${flag_file}" flags)
  separate_arguments(flags UNIX_COMMAND "${flags}")
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND "${flags}" MATCHES "avx512")
    # GCC's own AVX-512 header starts from a deliberately undefined register (GCC bug 105593).
    list(APPEND flags -Wno-maybe-uninitialized -Wno-uninitialized)
  endif()
  cmake_path(GET flag_file PARENT_PATH folder)
  file(GLOB sources CONFIGURE_DEPENDS "${folder}/*.cpp")
  target_sources(qcse_cpu PRIVATE ${sources})
  set_source_files_properties(${sources} PROPERTIES COMPILE_OPTIONS "${flags}")
  # Nothing of the networks needs equal bits on every machine: there the compiler may fuse.
  set_source_files_properties("${folder}/nets.cpp" PROPERTIES COMPILE_OPTIONS "${flags};-ffp-contract=fast")
endforeach()
if(processor STREQUAL "x86_64")
  target_compile_definitions(qcse_cpu PRIVATE QCSE_X86_KERNELS)
endif()
target_include_directories(qcse_cpu PRIVATE "${qcse_csrc}")
target_compile_options(qcse_cpu PRIVATE ${qcse_warnings} ${qcse_float} $<$<CONFIG:Release>:-O3>)

# --- CUDA -------------------------------------------------------------------------------------------------------
set(build_cuda OFF)
if(NOT QCSE_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "QCSE_CUDA must be AUTO, ON or OFF, got '${QCSE_CUDA}'")
elseif(NOT QCSE_CUDA STREQUAL "OFF")
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    set(build_cuda ON)
  elseif(QCSE_CUDA STREQUAL "ON")
    message(FATAL_ERROR "QCSE_CUDA=ON, but no CUDA compiler was found. Install the CUDA toolkit (nvcc) and put it on "
                        "PATH, or name it: CUDACXX=/usr/local/cuda/bin/nvcc pip install --no-build-isolation .")
  endif()
endif()
if(NOT build_cuda)
  message(STATUS "CUDA kernels are not built (QCSE_CUDA=${QCSE_CUDA})")
  return()
endif()

include("${qcse_csrc}/cuda_architectures.cmake")
qcse_cuda_architectures(CMAKE_CUDA_ARCHITECTURES "${QCSE_CUDA_ARCHITECTURES}" "${CMAKE_CUDA_ARCHITECTURES}")
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
message(STATUS "CUDA ${CMAKE_CUDA_COMPILER_VERSION}, architectures ${CMAKE_CUDA_ARCHITECTURES}")
file(GLOB qcse_cuda_sources CONFIGURE_DEPENDS "${qcse_csrc}/*/cuda/*.cu")
# Static cudart: the module loads, and its CPU half works, on a machine without CUDA.
add_library(qcse_cuda OBJECT ${qcse_cuda_sources})
set_target_properties(qcse_cuda PROPERTIES CUDA_RUNTIME_LIBRARY Static)
target_include_directories(qcse_cuda PRIVATE "${qcse_csrc}")
target_compile_options(qcse_cuda PRIVATE --fmad=false -Xcompiler=-ffp-contract=off -Xcompiler=-Wall
                       $<$<BOOL:${QCSE_WERROR}>:-Werror=all-warnings>)
target_compile_definitions(qcse_cuda PUBLIC $<$<BOOL:${QCSE_TUNING}>:QCSE_TUNING>)
