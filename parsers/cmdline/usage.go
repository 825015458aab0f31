package cmdline

import "fmt"

// UsagePortSentry2 returns the usage of the command line that
// [ParsePortSentry2] reads, for the program of that name.
func UsagePortSentry2(program string) string {
	return fmt.Sprintf(`%[1]s is Portsnare, a port-scan detector, in the place of PortSentry 2.

Usage: %[1]s [OPTION]...

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

%[3]s`, program, DefaultConfigFile, usageEnd)
}

// UsagePortSentry1 returns the usage of the command line that
// [ParsePortSentry1] reads, for the program of that name.
func UsagePortSentry1(program string) string {
	return fmt.Sprintf(`%[1]s is Portsnare, a port-scan detector, in the place of PortSentry 1.2.

Usage: %[1]s -tcp | -stcp | -atcp | -udp | -sudp | -audp

  -tcp, -udp    open the ports of TCP_PORTS or UDP_PORTS, report who connects
  -stcp, -sudp  sniff for probes to these ports, open none
  -atcp, -audp  sniff for probes to all ports below ADVANCED_PORTS_TCP or
                ADVANCED_PORTS_UDP, but those in use and those excluded

It reads %[2]s, goes into the background and
writes to syslog. With any other arguments it takes the place of PortSentry 2,
whose options --help lists.

%[3]s`, program, DefaultConfigFile, usageEnd)
}

// usageEnd says where the administrator finds the rest.
const usageEnd = `Check a configuration with "portsnare config check"; the manual page is
portsnared(8).
`
