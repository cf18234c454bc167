// SPDX-License-Identifier: Apache-2.0
//
// A plug-in for QEMU (qemu-user of Debian 12; static builds load none) that counts the instructions
// that a program executes. What it uses of QEMU is declared here, since Debian 12 has no
// qemu-plugin.h.
//   gcc -O2 -shared -fPIC count_instructions.c -o count_instructions.so
//   NIBBLE_TARGET=NEON_DOT qemu-aarch64 -L /usr/aarch64-linux-gnu -plugin ./count_instructions.so
//     -d plugin PROGRAM
#include <inttypes.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

struct qemu_info_t;
struct qemu_plugin_tb;
typedef uint64_t plugin_id;
extern void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id,
                                                  void (*)(plugin_id, struct qemu_plugin_tb*));
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb*);
extern void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb*, int operation,
                                                     void* counter, uint64_t n);
extern void qemu_plugin_register_atexit_cb(plugin_id, void (*)(plugin_id, void*), void*);
extern void qemu_plugin_outs(const char*);

__attribute__((visibility("default"))) int qemu_plugin_version = 1;
static uint64_t n_executed;

static void on_translated(plugin_id id, struct qemu_plugin_tb* block) {
  (void)id;
  qemu_plugin_register_vcpu_tb_exec_inline(block, 0 /* adds 64 bits */, &n_executed,
                                           qemu_plugin_tb_n_insns(block));
}

static void on_exit_of_program(plugin_id id, void* data) {
  char line[64];
  (void)id, (void)data;
  snprintf(line, sizeof line, "%" PRIu64 " instructions\n", n_executed);
  qemu_plugin_outs(line);
}

__attribute__((visibility("default"))) int qemu_plugin_install(plugin_id id,
                                                               const struct qemu_info_t* info,
                                                               int argc, char** argv) {
  (void)info, (void)argc, (void)argv;
  qemu_plugin_register_vcpu_tb_trans_cb(id, on_translated);
  qemu_plugin_register_atexit_cb(id, on_exit_of_program, NULL);
  return 0;
}
