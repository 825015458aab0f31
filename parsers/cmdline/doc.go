// Package cmdline reads the command lines of PortSentry 1.2 and PortSentry 2,
// which Portsnare takes in their place. It opens nothing and prints nothing.
package cmdline
