#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# bundle_test.sh PROGRAM MODEL FOLDER: keys, an encrypted model, a signed bundle, and what is refused.
set -eu
bundle=$1
model=$2
rm -rf "$3"
mkdir -p "$3/home"
cd "$3"

fail() {
  echo "$1" >&2
  exit 1
}
# refused PATTERN ARGUMENTS...: the program fails with 1, and says so.
refused() {
  pattern=$1
  shift
  code=0
  "$bundle" "$@" > out 2> err || code=$?
  [ "$code" -eq 1 ] || fail "exit code $code, not 1: $*"
  grep -q "$pattern" err || fail "not '$pattern' but: $(cat err)"
}

"$bundle" keygen release
"$bundle" keygen --p256 other
"$bundle" keygen --secret fleet
[ "$(ls -l release.key | cut -c1-10)" = "-rw-------" ] || fail "others may read release.key"
refused "there is such a file already" keygen release
"$bundle" encrypt "$model" home/model.sealed --secret fleet.secret
echo '{"cases":[{"prompt":"a","answer":"b"}]}' > home/health.json
"$bundle" sign home --key release.key --version 7 --days 90 --health health.json --setting context=512
"$bundle" inspect home | grep -q "not verified" || fail "inspect does not say that nothing is verified"
"$bundle" verify home --key other.pub --key release.pub --min-version 7 --secret fleet.secret > out
grep -q "^version  7$" out || fail "no version"
grep -q "model     model.sealed, encrypted with the key default" out || fail "no model: $(cat out)"
grep -q "^verified$" out || fail "not verified"
refused "not signed by any of the 1 keys" verify home --key other.pub
refused "is a downgrade" verify home --key release.pub --min-version 8
"$bundle" keygen --secret wrong
refused "does not decrypt" verify home --key release.pub --secret wrong.secret
cp home/model.sealed good
printf x | dd of=home/model.sealed bs=1 seek=100000 conv=notrunc 2> err
refused "not the bytes that were signed" verify home --key release.pub
mv good home/model.sealed
echo x > home/more
refused "not a file that was signed" verify home --key release.pub
rm home/more
"$bundle" verify home --key release.pub > out
refused "no address that is known here" update device ftp://127.0.0.1/home --key release.pub
