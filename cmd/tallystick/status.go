package main

// adminTokenFile is the file of the data directory that holds the admin token.
const adminTokenFile = "admin.token"
