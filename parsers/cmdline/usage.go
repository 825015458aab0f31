package cmdline

import "fmt"

// Usage returns what --help prints: both command lines that a program
// of that name takes.
func Usage(program string) string {
	return fmt.Sprintf(`%[1]s is Portsnare, a port-scan detector, in the place of PortSentry.

Usage: %[1]s [OPTION]...
       %[1]s -tcp | -stcp | -atcp | -udp | -sudp | -audp

What is watched:
      --stealth                sniff for probes, open no port (default)
      --connect                open the trap ports, report who connects
  -i, --interface=NAME         sniff on NAME; repeat it for several. ALL stands
                               for all, ALL_NLO (default) for all but loopback
  -m, --method=METHOD          pcap (default); raw sniffs on all interfaces
  -L, --disable-local-check    act on probes of this host to itself too
  -S, --disable-service-check  report probes to ports in use too

Where lines go:
  -l, --logoutput=OUTPUT       stdout (default) or syslog; repeat it for both
  -D, --daemon                 go into the background and write to syslog
  -v, --verbose                write more lines
  -d, --debug                  write lines for finding faults

  -c, --configfile=FILE        read FILE instead of
                               %[2]s
  -h, --help                   print this and exit
  -V, --version                print the version and exit

With one of these and nothing else it takes the place of PortSentry 1.2: reads
the file above, goes into the background and writes to syslog.
  -tcp, -udp                   open the ports of TCP_PORTS or UDP_PORTS
  -stcp, -sudp                 sniff for probes to these ports
  -atcp, -audp                 sniff for probes to all ports below
                               ADVANCED_PORTS_TCP or ADVANCED_PORTS_UDP

"portsnare config check" checks a configuration. Manual page: portsentry(8).
`, program, DefaultConfigFile)
}
