# SPDX-License-Identifier: Apache-2.0
#
# Writes goldens.hpp: signatures of the Python package model-signing (an implementation of the
# OpenSSF Model Signing specification), and results of the packages cryptography and pycryptodome.
#
#   python tests/serve/make_goldens.py > tests/serve/goldens.hpp
import pathlib
import subprocess
import sys
import tempfile

from Crypto.Cipher import AES
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

FILES = {"config.json": b"{}\n", "empty": b"", "sub/model.safetensors": bytes(range(256)) * 20}


def pem(key):
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()


def signed(key, folder):
    path = folder / "key.pem"
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM,
                                       serialization.PrivateFormat.PKCS8,
                                       serialization.NoEncryption()))
    model = folder / "model"
    signature = model / "model.sig"
    signature.unlink(missing_ok=True)
    command = "import sys; from model_signing._cli import main; sys.exit(main())"
    subprocess.run([sys.executable, "-c", command, "sign", "key", str(model), "--private_key",
                    str(path), "--signature", str(signature)], check=True, stdout=subprocess.DEVNULL)
    return signature.read_text()


def constant(name, text):
    print(f'\ninline const std::string {name} =\n    R"golden({text})golden";')


def main():
    print("// SPDX-License-Identifier: Apache-2.0\n//\n// Made by make_goldens.py.\n#pragma once\n")
    print("#include <string>\n\nnamespace test { namespace golden {")
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for file, data in FILES.items():
            path = folder / "model" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        for curve in (ec.SECP256R1(), ec.SECP384R1()):
            key = ec.generate_private_key(curve)
            constant(f"kModelSignature{curve.key_size}", signed(key, folder))
            constant(f"kModelKey{curve.key_size}", pem(key))
    message = b"signed by another library"
    key = ed25519.Ed25519PrivateKey.generate()
    constant("kEd25519Key", pem(key))
    constant("kEd25519Signature", key.sign(message).hex())
    key = ec.generate_private_key(ec.SECP256R1())
    constant("kP256Key", pem(key))
    constant("kP256Signature", key.sign(message, ec.ECDSA(hashes.SHA256())).hex())
    # With the keys, nonces, salt and info 0, 1, 2, ...
    secret = bytes(range(32))
    nonce = bytes(range(12))
    constant("kAesGcm", AESGCM(secret).encrypt(nonce, message, None).hex())
    constant("kChaCha20Poly1305", ChaCha20Poly1305(secret).encrypt(nonce, message, None).hex())
    ocb = AES.new(secret[:16], AES.MODE_OCB, nonce=nonce, mac_len=16)
    constant("kAesOcb", b"".join(ocb.encrypt_and_digest(message)).hex())
    derived = HKDF(algorithm=hashes.SHA256(), length=32, salt=bytes(range(16)), info=message)
    constant("kHkdf", derived.derive(secret).hex())
    print("\n}}  // namespace test::golden")


main()
