# The CUDA part of the core, compiled by nvcc alone: no file that it sees includes torch.
set(CMAKE_CUDA_ARCHITECTURES OFF)  # the -gencode flags below name them, PTX included
if(NOT CMAKE_CUDA_HOST_COMPILER)
  set(CMAKE_CUDA_HOST_COMPILER ${CMAKE_CXX_COMPILER})
endif()
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)

if(RNNKERN_CUDA_ARCHS)
  set(archs ${RNNKERN_CUDA_ARCHS})
else()
  # Compute capability 8.0's PTX serves, through the driver's compiler, whatever has no code of its own here.
  set(archs 7.5 8.0+PTX 9.0)
  if(CUDAToolkit_VERSION VERSION_GREATER_EQUAL 12.8)
    list(APPEND archs 10.0 12.0)
  endif()
endif()

set(gencodes)
set(arch_names)
foreach(arch IN LISTS archs)
  if(NOT arch MATCHES "^([0-9]+)[.]([0-9])([af]?)([+]PTX)?$")
    message(FATAL_ERROR "TORCH_CUDA_ARCH_LIST: expected entries such as 8.0, 8.0+PTX or 9.0a, got ${arch}")
  endif()
  set(name ${CMAKE_MATCH_1}${CMAKE_MATCH_2}${CMAKE_MATCH_3})
  list(APPEND gencodes -gencode=arch=compute_${name},code=sm_${name})
  if(CMAKE_MATCH_4)
    list(APPEND gencodes -gencode=arch=compute_${name},code=compute_${name})
  endif()
  list(APPEND arch_names ${name}${CMAKE_MATCH_4})
endforeach()
string(JOIN "," arch_names ${arch_names})  # a definition cannot hold a semicolon: CMake splits there

file(GLOB cuda_sources CONFIGURE_DEPENDS csrc/core/cuda/*.cu)
target_sources(rnnkern_core PRIVATE ${cuda_sources})
target_compile_options(rnnkern_core PRIVATE
  $<$<COMPILE_LANGUAGE:CUDA>:-std=c++20;--expt-relaxed-constexpr;--extended-lambda;${gencodes}>)
if(RNNKERN_PTXAS_INFO)
  target_compile_options(rnnkern_core PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-Xptxas=-v>)
else()
  target_compile_options(rnnkern_core PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:--threads=4>)  # architectures side by side
endif()
target_compile_definitions(rnnkern_core PUBLIC
  RNNKERN_WITH_CUDA "RNNKERN_CUDA_ARCHS=\"${arch_names}\""
  RNNKERN_CUDA_VERSION="${CUDAToolkit_VERSION_MAJOR}.${CUDAToolkit_VERSION_MINOR}")
target_link_libraries(rnnkern_core PUBLIC CUDA::cudart)
set_target_properties(rnnkern_core PROPERTIES CUDA_ARCHITECTURES OFF CUDA_RUNTIME_LIBRARY Shared CUDA_VISIBILITY_PRESET hidden)
