// SPDX-License-Identifier: Apache-2.0
//
// Declarations of the Windows functions that nibble calls, so that a program does not get the
// thousands of macros of <windows.h> from nibble. They match <windows.h>, which may be included as
// well. Empty on other systems.
#pragma once

#if defined(_WIN32)

struct _OVERLAPPED;
struct _SECURITY_ATTRIBUTES;
union _LARGE_INTEGER;

#if defined(__GNUC__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wredundant-decls"
#endif

extern "C" {
// Handles are void*, BOOL is int, DWORD is unsigned long.
__declspec(dllimport) int __stdcall CloseHandle(void*);
__declspec(dllimport) void* __stdcall CreateFileMappingW(void*, _SECURITY_ATTRIBUTES*,
                                                         unsigned long, unsigned long,
                                                         unsigned long, const wchar_t*);
__declspec(dllimport) void* __stdcall CreateFileW(const wchar_t*, unsigned long, unsigned long,
                                                  _SECURITY_ATTRIBUTES*, unsigned long,
                                                  unsigned long, void*);
__declspec(dllimport) int __stdcall DeleteFileW(const wchar_t*);
__declspec(dllimport) int __stdcall FlushFileBuffers(void*);
__declspec(dllimport) void* __stdcall GetCurrentProcess();
__declspec(dllimport) unsigned long __stdcall GetCurrentProcessId();
__declspec(dllimport) void* __stdcall GetCurrentThread();
__declspec(dllimport) unsigned long __stdcall GetCurrentThreadId();
__declspec(dllimport) unsigned long __stdcall GetFileAttributesW(const wchar_t*);
__declspec(dllimport) int __stdcall GetFileSizeEx(void*, _LARGE_INTEGER*);
__declspec(dllimport) unsigned long __stdcall GetLastError();
__declspec(dllimport) int __stdcall MoveFileExW(const wchar_t*, const wchar_t*, unsigned long);
__declspec(dllimport) int __stdcall MultiByteToWideChar(unsigned int, unsigned long, const char*,
                                                        int, wchar_t*, int);
__declspec(dllimport) int __stdcall UnmapViewOfFile(const void*);
__declspec(dllimport) unsigned long __stdcall WaitForSingleObject(void*, unsigned long);
__declspec(dllimport) int __stdcall WriteFile(void*, const void*, unsigned long, unsigned long*,
                                              _OVERLAPPED*);
// Sizes and masks are ULONG_PTR.
#if defined(_WIN64)
__declspec(dllimport) int __stdcall GetProcessAffinityMask(void*, unsigned long long*,
                                                           unsigned long long*);
__declspec(dllimport) void* __stdcall MapViewOfFile(void*, unsigned long, unsigned long,
                                                    unsigned long, unsigned long long);
__declspec(dllimport) unsigned long long __stdcall SetThreadAffinityMask(void*, unsigned long long);
#else
__declspec(dllimport) int __stdcall GetProcessAffinityMask(void*, unsigned long*, unsigned long*);
__declspec(dllimport) void* __stdcall MapViewOfFile(void*, unsigned long, unsigned long,
                                                    unsigned long, unsigned long);
__declspec(dllimport) unsigned long __stdcall SetThreadAffinityMask(void*, unsigned long);
#endif
}

#if defined(__GNUC__)
#pragma GCC diagnostic pop
#endif

#endif
