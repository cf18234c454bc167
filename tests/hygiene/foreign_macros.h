// SPDX-License-Identifier: Apache-2.0
//
// Macros of well-known headers, which a program may include before nibble's (macros.cmake). Not here:
// those that no C++ program can live with, such as a function-like `move`, which would change std::move.

// Xlib.h, X.h
#define None 0L
#define Bool int
#define Status int
#define Success 0
#define True 1
#define False 0
#define Always 2
#define Never 0
#define CurrentTime 0L
#define Above 0
#define Below 1
#define Complex 0
#define Convex 2
#define Nonconvex 1
#define Unsorted 0
#define YSorted 1
#define KeyPress 2
#define KeyRelease 3
#define FocusIn 9
#define FocusOut 10
#define Expose 12
#define Opposite 4
#define GrayScale 1
#define StaticGray 0
#define ParentRelative 1L
#define InputOutput 1
#define InputOnly 2
#define Button1 1
#define ControlMask 4
#define ShiftMask 1
#define LockMask 2
#define AnyKey 0L
#define AllTemporary 0L
#define LineSolid 0
#define FillSolid 0
#define CursorShape 0
#define NoSymbol 0L
#define Absolute 1
#define Relative 2
#define EvenOddRule 0
#define WindingRule 1
#define ZPixmap 2
#define PropModeReplace 0
#define GXclear 0
#define Font unsigned long
#define Free(x) (x)
// windows.h
#define near
#define far
#define small char
#define hyper long
#define interface struct
#define IN
#define OUT
#define OPTIONAL
#define CONST const
#define VOID void
#define ERROR 0
#define NO_ERROR 0L
#define DELETE 0x10000L
#define READ_CONTROL 1
#define CALLBACK
#define WINAPI
#define PASCAL
#define TRUE 1
#define FALSE 0
#define STRICT 1
#define IGNORE 0
#define INFINITE 0xFFFFFFFF
#define TRANSPARENT 1
#define OPAQUE 2
#define ABSOLUTE 1
#define RELATIVE 2
#define DIFFERENCE 11
#define GetObject GetObjectW
#define CreateFile CreateFileW
#define GetMessage GetMessageW
#define LoadString LoadStringW
#define GetCurrentTime() 0
#define Yield()
#define cdecl
#define grp1 1
#define rad1 1
#define ALTERNATE 1
#define WINDING 2
#define DOMAIN 1
#define OVERFLOW 3
#define UNDERFLOW 4
#define min(a, b) (((a) < (b)) ? (a) : (b))
#define max(a, b) (((a) > (b)) ? (a) : (b))
// termios, BSD, sysmacros
#define B0 0
#define B50 1
#define B110 3
#define major(dev) (dev)
#define minor(dev) (dev)
#define makedev(a, b) (a)
#define ECHO 8
#define NL0 0
#define CR0 0
#define TAB0 0
#define VT0 0
#define FF0 0
#define howmany(x, y) (((x) + ((y) - 1)) / (y))
#define roundup(x, y) ((((x) + ((y) - 1)) / (y)) * (y))
#define powerof2(x) ((((x) - 1) & (x)) == 0)
#define MIN(a, b) (((a) < (b)) ? (a) : (b))
#define MAX(a, b) (((a) > (b)) ? (a) : (b))
#define setbit(a, i) (a)
#define clrbit(a, i) (a)
#define isset(a, i) (a)
#define isclr(a, i) (a)
#define unix 1
#define linux 1
// Arduino.h, avr-libc
#define F(x) (x)
#define PI 3.14
#define HALF_PI 1.57
#define abs(x) ((x) > 0 ? (x) : -(x))
#define round(x) ((long)(x))
#define constrain(x, a, b) (x)
#define radians(x) (x)
#define degrees(x) (x)
#define sq(x) ((x) * (x))
#define bit(b) (1UL << (b))
#define bitRead(v, b) (v)
#define bitSet(v, b) (v)
#define bitClear(v, b) (v)
#define bitWrite(v, b, x) (v)
#define lowByte(w) (w)
#define highByte(w) (w)
#define interrupts()
#define noInterrupts()
#define HIGH 1
#define LOW 0
#define INPUT 0
#define OUTPUT 1
#define SERIAL 0
#define DISPLAY 1
#define DEFAULT 1
#define EXTERNAL 0
#define INTERNAL 3
#define B1 1
#define B01 1
#define B10 2
#define DEC 10
#define HEX 16
#define OCT 8
#define BIN 2
#define EULER 2.7
#define _BV(b) (1 << (b))
#define word(x) (x)
// Objective-C, AppKit, Carbon AssertMacros
#define nil 0
#define Nil 0
#define YES 1
#define NO 0
#define check(x)
#define verify(x)
#define require(x, label)
#define verify_noerr(x)
// glib
#define CLAMP(x, a, b) (x)
#define ABS(x) (x)
// perl, ruby, Python, ncurses, others
#define isspace(x) (x)
#define isdigit(x) (x)
#define toupper(x) (x)
#define tolower(x) (x)
#define OK 0
#define ERR -1
#define bool_t int
#define do_open Perl_do_open
#define seed() Perl_seed()
#define die Perl_die
#define warn Perl_warn
#define form Perl_form
#define block_end Perl_block_end
#define Copy(a, b, c, d) (a)
#define Move(a, b, c, d) (a)
#define New(a, b, c, d) (a)
#define Null(x) ((x)0)
#define _(x) (x)
#define N_(x) (x)
// torch, glog
#define CHECK(x) (x)
#define CHECK_EQ(a, b) (a)
#define DCHECK(x) (x)
#define LOG(x) (x)
#define VLOG(x) (x)
#define RAW_LOG(x) (x)
#define INFO 0
#define WARNING 1
#define FATAL 3
// Qt
#define signals public
#define slots
#define emit
#define foreach(a, b) for (a : b)
#define forever for (;;)
#define Q_OBJECT
#define tr(x) (x)
// assert of Catch, Boost.Test, gtest
#define REQUIRE(x) (x)
#define TEST(a, b) void a()
#define FAIL() (0)
#define SECTION(x) if (true)
// complex.h, math.h, time.h, sys
#define I 1
#define HUGE 1e300
#define DOMAIN 1
#define Private
#define likely(x) (x)
#define unlikely(x) (x)
#define countof(x) (x)
#define ARRAYSIZE(x) (x)
#define BIT(x) (1 << (x))
#define ALIGN(x) (x)
// Names of Highway's operations (perl): only nibble's declarations can live with these.
#if defined(NIBBLE_SPLIT)
#define Zero(a, b, c) (a)
#endif
