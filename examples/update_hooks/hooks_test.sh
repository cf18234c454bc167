#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# hooks_test.sh FOLDER: calls the hooks of this folder as the daemons do.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
rm -rf "$1"
mkdir -p "$1/source/nibble" "$1/tree/files"
cd "$1"
export NIBBLE_INBOX="$PWD/inbox"

RAUC_UPDATE_SOURCE=$PWD/tree sh "$here/rauc-post-install" # no model bundle in it: nothing happens
[ ! -e inbox ]
echo one > source/nibble/bundle.json
RAUC_UPDATE_SOURCE=$PWD/source sh "$here/rauc-post-install"
[ "$(cat inbox/bundle/bundle.json)" = one ]

module="$here/mender-nibble-bundle"
[ "$(sh "$module" NeedsArtifactReboot tree)" = No ]
[ "$(sh "$module" SupportsRollback tree)" = Yes ]
echo two > source/nibble/bundle.json
tar -c -f tree/files/home.tar -C source/nibble .
sh "$module" Download tree
sh "$module" ArtifactInstall tree
[ "$(cat inbox/bundle/bundle.json)" = two ]
tar -c -f tree/files/home.tar -C source nibble # not the folder's content
if sh "$module" ArtifactInstall tree 2> err; then exit 1; fi
grep -q "no bundle.json" err
[ "$(cat inbox/bundle/bundle.json)" = two ]
sh "$module" ArtifactRollback tree
[ ! -e inbox/bundle ]
echo "both hooks put bundles into the inbox"
