// Package tproxy has the kernel hand to a few sockets what arrives for many
// ports, by rules of nftables. Ports that other sockets have are left to them,
// whenever these come and go.
package tproxy
