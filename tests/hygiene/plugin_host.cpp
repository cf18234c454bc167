// SPDX-License-Identifier: Apache-2.0
//
// Loads plug-ins (plugins.cmake). The arguments are steps:
//   open NAME   load, apart from the others
//   run NAME X, force NAME X   call plugin_run(X), plugin_force(X); they must return 0
//   close NAME  unload; it must then not be in memory any more
// Exits with the number of the step that failed.
#include <dlfcn.h>

#include <cstdio>
#include <map>
#include <string>

int main(int argc, char** argv) {
  std::map<std::string, void*> plugins;
  for (int i = 1, step = 1; i + 1 < argc; ++step) {
    const std::string verb = argv[i], name = argv[i + 1];
    i += 2;
    void*& plugin = plugins[name];
    if (verb == "open") {
      plugin = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
      if (plugin == nullptr) return std::puts(dlerror()), step;
    } else if (verb == "close") {
      if (dlclose(plugin) != 0) return step;
      if (dlopen(name.c_str(), RTLD_NOW | RTLD_NOLOAD) != nullptr) {
        std::printf("%s is still in memory\n", name.c_str());
        return step;
      }
    } else {
      const auto call =
          reinterpret_cast<int (*)(const char*)>(dlsym(plugin, ("plugin_" + verb).c_str()));
      if (call == nullptr || call(argv[i]) != 0) {
        std::printf("%s: %s %s failed\n", name.c_str(), verb.c_str(), argv[i]);
        return step;
      }
      ++i;
    }
  }
  return 0;
}
