package guard

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// sshServers are the process names of SSH servers.
var sshServers = []string{"sshd", "dropbear"}

// maxServerPorts bounds the ports that are found. Each costs two looks at the
// socket tables a second.
const maxServerPorts = 16

// serverPorts returns the ports on which SSH servers listen: those of listening
// sockets that root opened and that a process of such a name holds. So neither
// a user's program of that name counts nor a port that a user forwards; those
// that root forwards are on loopback, unless sshd is told otherwise. Without
// the privilege to see root's sockets it finds nothing.
//
// It costs a look at each process's name, a few milliseconds.
func (s *sessionTables) serverPorts() ([]uint16, error) {
	listening := make(map[string]uint16) // by what the link of a descriptor says
	err := s.each(1<<unix.BPF_TCP_LISTEN, 0, func(socket tcpSocket) {
		if socket.uid == 0 && !socket.local.Addr().IsLoopback() {
			listening["socket:["+strconv.FormatUint(uint64(socket.inode), 10)+"]"] = socket.local.Port()
		}
	})
	if err != nil {
		return nil, err
	}
	names, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		return nil, err
	}
	var ports []uint16
	for _, name := range names {
		comm, err := os.ReadFile(name)
		if err != nil || !slices.Contains(sshServers, strings.TrimSpace(string(comm))) {
			continue // most likely it has ended
		}
		for _, held := range heldSockets(filepath.Dir(name)) {
			port, ok := listening[held]
			if ok && !slices.Contains(ports, port) && len(ports) < maxServerPorts {
				ports = append(ports, port)
			}
		}
	}
	return ports, nil
}

// heldSockets returns what the links of a process's descriptors say.
func heldSockets(process string) []string {
	directory := filepath.Join(process, "fd")
	descriptors, err := os.ReadDir(directory)
	if err != nil {
		return nil // ended, or not ours to see
	}
	var held []string
	for _, d := range descriptors {
		if link, err := os.Readlink(filepath.Join(directory, d.Name())); err == nil {
			held = append(held, link)
		}
	}
	return held
}
