#include "module.h"

#include <cxxabi.h>
#include <dlfcn.h>
#include <elf.h>
#include <link.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string_view>

namespace simt {
namespace {

thread_local volatile char anchor;  // so that the module has a thread-local segment in any case

struct Loaded {
  std::uintptr_t address;  // of something in the module that is looked for
  std::uintptr_t base = 0;
  std::uintptr_t end = 0;
  Segment segment{0, 0};
};

int match(dl_phdr_info* info, std::size_t, void* data) {
  auto& loaded = *static_cast<Loaded*>(data);
  std::uintptr_t begin = UINTPTR_MAX;
  std::uintptr_t end = 0;
  std::size_t segment = 0;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const auto& header = info->dlpi_phdr[i];
    if (header.p_type == PT_LOAD) {
      begin = std::min<std::uintptr_t>(begin, info->dlpi_addr + header.p_vaddr);
      end = std::max<std::uintptr_t>(end, info->dlpi_addr + header.p_vaddr + header.p_memsz);
    } else if (header.p_type == PT_TLS) {
      segment = header.p_memsz;
    }
  }
  if (loaded.address < begin || loaded.address >= end) return 0;
  loaded.base = begin;
  loaded.end = end;
  loaded.segment = {reinterpret_cast<std::uintptr_t>(info->dlpi_tls_data), segment};
  return 1;
}

Loaded find_loaded() {
  anchor = 0;  // the loader makes a thread's segment when it is first touched
  Loaded loaded{reinterpret_cast<std::uintptr_t>(&find_loaded)};
  dl_iterate_phdr(match, &loaded);
  return loaded;
}

std::string demangle(const char* name) {
  int status = 0;
  char* text = abi::__cxa_demangle(name, nullptr, nullptr, &status);
  std::string result = text != nullptr ? text : name;
  std::free(text);
  return result;
}

// "kernel<4>(float const*, float*)::tile" -> "tile"
std::string last_part(const std::string& name) {
  const std::size_t colon = name.rfind("::");
  return colon == std::string::npos ? name : name.substr(colon + 2);
}

void read_symbols(Module& module) {
  std::ifstream file(module.path, std::ios::binary);
  const std::vector<char> image((std::istreambuf_iterator<char>(file)), {});
  if (image.size() < sizeof(Elf64_Ehdr)) return;
  const auto* header = reinterpret_cast<const Elf64_Ehdr*>(image.data());
  const auto* sections = reinterpret_cast<const Elf64_Shdr*>(image.data() + header->e_shoff);
  for (int i = 0; i < header->e_shnum; ++i) {
    if (sections[i].sh_type != SHT_SYMTAB) continue;
    const char* names = image.data() + sections[sections[i].sh_link].sh_offset;
    const auto* symbols = reinterpret_cast<const Elf64_Sym*>(image.data() + sections[i].sh_offset);
    const std::size_t count = sections[i].sh_size / sizeof(Elf64_Sym);
    for (const auto* symbol = symbols; symbol != symbols + count; ++symbol) {
      if (symbol->st_shndx == SHN_UNDEF) continue;
      const char* name = names + symbol->st_name;
      if (ELF64_ST_TYPE(symbol->st_info) == STT_FUNC) {
        module.functions[module.base + symbol->st_value] = name;
      } else if (ELF64_ST_TYPE(symbol->st_info) == STT_TLS && symbol->st_size > 0) {
        const StaticVariable variable{last_part(demangle(name)), symbol->st_value, symbol->st_size};
        const bool guard = std::string_view(name).starts_with("_ZGV");
        if (variable.name != "anchor")
          (guard ? module.guards : module.variables).push_back(variable);
      }
    }
  }
}

Module read_module() {
  Module module;
  const Loaded loaded = find_loaded();
  module.base = loaded.base;
  module.end = loaded.end;
  Dl_info info;
  if (dladdr(reinterpret_cast<void*>(&find_loaded), &info) != 0) module.path = info.dli_fname;
  read_symbols(module);
  return module;
}

}  // namespace

const Module& module() {
  static const Module loaded = read_module();
  return loaded;
}

std::string kernel_name(const void* kernel) {
  const auto& functions = module().functions;
  const auto found = functions.find(reinterpret_cast<std::uintptr_t>(kernel));
  if (found == functions.end()) return "a kernel";
  std::string name = demangle(found->second.c_str());
  if (name.starts_with("void ")) name = name.substr(5);  // a template's name has its return type
  return name.substr(0, name.rfind('('));
}

Segment shared_segment() { return find_loaded().segment; }

}  // namespace simt
