# What a module and a sample of ours use of Zephyr's build system, on a computer. Kconfig is not
# interpreted: the symbols are those that prj.conf sets.
enable_language(C)
file(STRINGS ${CMAKE_SOURCE_DIR}/prj.conf lines REGEX "^CONFIG_")
foreach(line IN LISTS lines)
  string(REGEX MATCH "^(CONFIG_[A-Z0-9_]+)=y$" found "${line}")
  set(${CMAKE_MATCH_1} y)
endforeach()

add_library(zephyr_interface INTERFACE)

macro(zephyr_include_directories)
  target_include_directories(zephyr_interface INTERFACE ${ARGV})
endmacro()

macro(zephyr_library_named name)
  set(ZEPHYR_CURRENT_LIBRARY ${name})
  add_library(${name} STATIC)
  target_link_libraries(${name} PUBLIC zephyr_interface)
  target_link_libraries(app PRIVATE ${name})
endmacro()

macro(zephyr_library_sources)
  target_sources(${ZEPHYR_CURRENT_LIBRARY} PRIVATE ${ARGV})
endmacro()

add_executable(app)
target_link_libraries(app PRIVATE zephyr_interface)
foreach(module IN LISTS EXTRA_ZEPHYR_MODULES)
  get_filename_component(module ${module} ABSOLUTE)
  get_filename_component(module_name ${module} NAME)
  add_subdirectory(${module}/zephyr modules/${module_name})
endforeach()
