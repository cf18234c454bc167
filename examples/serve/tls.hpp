// SPDX-License-Identifier: Apache-2.0
//
// The bytes of a socket, with TLS or without. TLS needs OpenSSL, which httplib says that it has.
#pragma once

#include <httplib.h>
#include <poll.h>
#include <sys/socket.h>

#include <cerrno>
#include <chrono>
#include <memory>
#include <string>

#include "nibble/core/result.hpp"

namespace example::server {

// What read() and write() return beside a number of bytes above 0: try again when the socket is
// ready; the other side has ended; an error.
inline constexpr ssize_t kAgain = 0, kEnd = -1, kBroken = -2;

#if defined(CPPHTTPLIB_OPENSSL_SUPPORT)

// A server's certificate and key.
class TlsContext {
 public:
  // `certificate`: a PEM file with the chain; `key`: with its private key. Errors: io.
  static nibble::Result<std::unique_ptr<TlsContext>> create(const std::string& certificate,
                                                            const std::string& key) {
    std::unique_ptr<TlsContext> made(new TlsContext);
    SSL_CTX* const context = made->context_.get();
    const auto error = [](const std::string& file, const char* what) {
      char reason[256] = "";
      ERR_error_string_n(ERR_get_error(), reason, sizeof(reason));
      return nibble::Error{nibble::Errc::io, nibble::printable(file) + ": " + what + ": " + reason};
    };
    if (context == nullptr) return error("TLS", "no context");
    SSL_CTX_set_min_proto_version(context, TLS1_2_VERSION);
    SSL_CTX_set_options(context, SSL_OP_NO_RENEGOTIATION);
    SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    if (SSL_CTX_use_certificate_chain_file(context, certificate.c_str()) != 1) {
      return error(certificate, "no certificate");
    }
    if (SSL_CTX_use_PrivateKey_file(context, key.c_str(), SSL_FILETYPE_PEM) != 1) {
      return error(key, "no private key");
    }
    if (SSL_CTX_check_private_key(context) != 1) return error(key, "not of the certificate");
    return made;
  }

  SSL_CTX* get() const { return context_.get(); }

 private:
  struct Free {
    void operator()(SSL_CTX* context) const { SSL_CTX_free(context); }
  };
  std::unique_ptr<SSL_CTX, Free> context_{SSL_CTX_new(TLS_server_method())};
};

#else

class TlsContext {
 public:
  static nibble::Result<std::unique_ptr<TlsContext>> create(const std::string&,
                                                            const std::string&) {
    return nibble::Error{nibble::Errc::unsupported, "this program was built without OpenSSL"};
  }
};

#endif

// Of a socket that does not block.
class TlsStream {
 public:
  // Plain bytes without a context.
  TlsStream(const TlsContext* context, socket_t socket) : socket_(socket) {
#if defined(CPPHTTPLIB_OPENSSL_SUPPORT)
    if (context == nullptr) return;
    is_tls_ = true;
    ssl_.reset(SSL_new(context->get()));
    if (ssl_ != nullptr) SSL_set_fd(ssl_.get(), static_cast<int>(socket));
#else
    (void)context;
#endif
  }

  // The beginning of TLS, once; false if it fails or takes longer.
  bool handshake([[maybe_unused]] int ms) {
#if defined(CPPHTTPLIB_OPENSSL_SUPPORT)
    if (!is_tls_ || is_begun_) return true;
    if (ssl_ == nullptr) return false;
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(ms);
    for (int done = 0; (done = SSL_accept(ssl_.get())) != 1;) {
      if (result_of(done) != kAgain) return false;
      const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
          deadline - std::chrono::steady_clock::now());
      pollfd waited{socket_, static_cast<short>(wants() != 0 ? wants() : POLLIN), 0};
      if (left.count() <= 0 || ::poll(&waited, 1, static_cast<int>(left.count())) <= 0) {
        return false;
      }
    }
    is_begun_ = true;
#endif
    return true;
  }

  ssize_t read(char* to, std::size_t size) {
#if defined(CPPHTTPLIB_OPENSSL_SUPPORT)
    if (is_tls_) return result_of(SSL_read(ssl_.get(), to, static_cast<int>(size)));
#endif
    const ssize_t n = ::recv(socket_, to, size, 0);
    return n == 0 ? kEnd : n > 0 ? n : may_try_again() ? kAgain : kBroken;
  }
  ssize_t write(const char* from, std::size_t size) {
#if defined(CPPHTTPLIB_OPENSSL_SUPPORT)
    constexpr std::size_t kMost = std::size_t{1} << 30;
    if (is_tls_) {
      return result_of(SSL_write(ssl_.get(), from, static_cast<int>(size < kMost ? size : kMost)));
    }
#endif
    const ssize_t n = ::send(socket_, from, size, MSG_NOSIGNAL);
    return n >= 0 ? n : may_try_again() ? kAgain : kBroken;
  }

  // Bytes that were taken from the socket, but not read yet.
  bool has_buffered() const {
#if defined(CPPHTTPLIB_OPENSSL_SUPPORT)
    return is_begun_ && SSL_pending(ssl_.get()) > 0;
#else
    return false;
#endif
  }
  // What else a socket must be ready for: TLS may have to write in order to read.
  int wants() const { return wants_; }

  // Whether the other side has not ended, after the socket was found to be readable.
  bool is_open() const {
    char byte = 0;
#if defined(CPPHTTPLIB_OPENSSL_SUPPORT)
    if (is_tls_) {
      const int n = is_begun_ ? SSL_peek(ssl_.get(), &byte, 1) : 1;
      if (n > 0) return true;
      const int error = SSL_get_error(ssl_.get(), n);
      ERR_clear_error();
      return error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE;
    }
#endif
    const ssize_t n = ::recv(socket_, &byte, 1, MSG_PEEK);
    return n > 0 || (n < 0 && may_try_again());
  }

  void close() {
#if defined(CPPHTTPLIB_OPENSSL_SUPPORT)
    if (is_begun_ && !is_broken_) SSL_shutdown(ssl_.get());
    ERR_clear_error();
#endif
  }

 private:
  static bool may_try_again() { return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR; }

#if defined(CPPHTTPLIB_OPENSSL_SUPPORT)
  ssize_t result_of(int n) {
    wants_ = 0;
    if (n > 0) return n;
    const int error = SSL_get_error(ssl_.get(), n);
    ERR_clear_error();
    if (error == SSL_ERROR_WANT_READ) wants_ = POLLIN;
    if (error == SSL_ERROR_WANT_WRITE) wants_ = POLLOUT;
    if (wants_ != 0) return kAgain;
    is_broken_ = error != SSL_ERROR_ZERO_RETURN;
    return is_broken_ ? kBroken : kEnd;
  }

  struct Free {
    void operator()(SSL* ssl) const { SSL_free(ssl); }
  };
  std::unique_ptr<SSL, Free> ssl_;
  bool is_tls_ = false, is_begun_ = false, is_broken_ = false;
#endif
  socket_t socket_;
  int wants_ = 0;
};

}  // namespace example::server
