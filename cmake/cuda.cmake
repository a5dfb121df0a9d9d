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

# The flags for a list of entries such as 8.0+PTX, and their names as sm_ and compute_ spell them.
function(gencode_flags archs flags names)
  set(all_flags)
  set(all_names)
  foreach(arch IN LISTS archs)
    if(NOT arch MATCHES "^([0-9]+)[.]([0-9])([af]?)([+]PTX)?$")
      message(FATAL_ERROR "TORCH_CUDA_ARCH_LIST: expected entries such as 8.0, 8.0+PTX or 9.0a, got ${arch}")
    endif()
    set(name ${CMAKE_MATCH_1}${CMAKE_MATCH_2}${CMAKE_MATCH_3})
    list(APPEND all_flags -gencode=arch=compute_${name},code=sm_${name})
    if(CMAKE_MATCH_4)
      list(APPEND all_flags -gencode=arch=compute_${name},code=compute_${name})
    endif()
    list(APPEND all_names ${name}${CMAKE_MATCH_4})
  endforeach()
  string(JOIN "," all_names ${all_names})  # a definition cannot hold a semicolon: CMake splits there
  set(${flags} ${all_flags} PARENT_SCOPE)
  set(${names} ${all_names} PARENT_SCOPE)
endfunction()

# stationary has many and large kernels. They are compiled for 8.0 and up; what is not named here but finds PTX below it,
# as 12.0 does, uses that.
set(stationary_archs)
set(clusters OFF)
string(REGEX MATCH "[+]PTX" has_ptx "${archs}")
foreach(arch IN LISTS archs)
  string(REGEX REPLACE "^(9[.]0|10[.]0)([+]PTX)?$" "\\1a\\2" arch "${arch}")
  if(arch MATCHES "^[1-7][.]" OR (arch MATCHES "^12[.]" AND has_ptx))
    continue()
  endif()
  list(APPEND stationary_archs ${arch})
  if(NOT arch MATCHES "^8[.]")
    set(clusters ON)
  endif()
endforeach()

if(NOT stationary_archs)  # the kernels must exist, but their instructions do not below 8.0
  set(stationary_archs 8.0)
endif()

gencode_flags("${archs}" gencodes arch_names)
gencode_flags("${stationary_archs}" stationary_gencodes stationary_arch_names)
file(GLOB cuda_sources CONFIGURE_DEPENDS csrc/core/cuda/*.cu)
file(GLOB stationary_sources CONFIGURE_DEPENDS csrc/core/cuda/stationary/*.cu)
set_source_files_properties(${cuda_sources} PROPERTIES COMPILE_OPTIONS "${gencodes}")
set_source_files_properties(${stationary_sources} PROPERTIES COMPILE_OPTIONS "${stationary_gencodes}")
target_sources(rnnkern_core PRIVATE ${cuda_sources} ${stationary_sources})
target_compile_options(rnnkern_core PRIVATE
  $<$<COMPILE_LANGUAGE:CUDA>:-std=c++20;--expt-relaxed-constexpr;--extended-lambda;-ftz=true;--threads=4>)  # archs side by side
target_compile_definitions(rnnkern_core PUBLIC
  RNNKERN_WITH_CUDA "RNNKERN_CUDA_ARCHS=\"${arch_names}\"" "RNNKERN_STATIONARY_ARCHS=\"${stationary_arch_names}\""
  $<$<BOOL:${clusters}>:RNNKERN_WITH_CLUSTERS>
  RNNKERN_CUDA_VERSION="${CUDAToolkit_VERSION_MAJOR}.${CUDAToolkit_VERSION_MINOR}")
target_link_libraries(rnnkern_core PUBLIC CUDA::cudart)
set_target_properties(rnnkern_core PROPERTIES CUDA_ARCHITECTURES OFF CUDA_RUNTIME_LIBRARY Shared CUDA_VISIBILITY_PRESET hidden)
