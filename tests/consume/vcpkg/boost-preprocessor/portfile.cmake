# SPDX-License-Identifier: Apache-2.0
file(COPY "$ENV{NIBBLE_BOOST_PP_DIR}/boost/preprocessor" "$ENV{NIBBLE_BOOST_PP_DIR}/boost/preprocessor.hpp"
     DESTINATION "${CURRENT_PACKAGES_DIR}/include/boost")
file(WRITE "${CURRENT_PACKAGES_DIR}/share/boost-preprocessor/copyright" "a stand-in")
